"""What a method without likelihoods is asked: pure functions on tensors, their rows, sentences and figures.

Drift of long generations, round trips of predicted latents, noise that a latent takes, calibration, foreign text.
Knows torch, and matplotlib in `figures` alone; opens no file of a model.
"""
