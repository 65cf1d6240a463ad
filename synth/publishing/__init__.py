"""SIA folders for others: laid out for anomalib, and as datasets of the Hugging Face Hub."""
