"""What both packages use: nothing here knows of anomalies."""
