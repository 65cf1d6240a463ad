"""What the commands make: a trained and checked model, and the images of an SIA folder."""
