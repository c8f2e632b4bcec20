"""TOKENS -> SCORE: BrierLM, and the one vocabulary of logged names with their units. No model in sight."""
