"""What both packages stand on: nothing here knows of anomalies."""
