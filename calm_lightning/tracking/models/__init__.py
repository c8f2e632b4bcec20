"""What runs made and used, in MLflow: trained models, corpora, evaluations."""
