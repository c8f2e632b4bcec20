"""How long each model is trained, so that models compare: the budget rule, the forecast, fairness."""
