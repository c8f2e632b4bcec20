"""TOKENS -> SCORE: BrierLM, reconstruction, and the one vocabulary of logged names. No model in sight."""
