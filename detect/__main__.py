"""`python -m detect`, for `accelerate launch -m detect ...`."""

from detect.cli import main

main()
