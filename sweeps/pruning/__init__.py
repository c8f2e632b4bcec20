"""When a trial is stopped early, why, and how often that would have been wrong."""
