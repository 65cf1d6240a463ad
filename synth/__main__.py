"""`python -m synth`, for `accelerate launch -m synth ...`."""

from synth.cli import main

main()
