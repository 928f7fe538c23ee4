"""The steps of a run, one module each; `pac_core.finetune.FineTuner` calls them in order."""
