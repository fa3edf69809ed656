"""What `python -m experiments.report` is made of: records in, sentences, tables and plots out."""
