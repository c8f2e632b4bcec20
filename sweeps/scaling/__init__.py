"""BrierLM as a function of FLOPs, parameters and K, and which K a budget wants."""
