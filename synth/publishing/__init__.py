"""SIA folders as datasets of the Hugging Face Hub."""
