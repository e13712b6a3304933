"""Fine-tuning of PromptEOL from a checkout of the repository; not part of the installed package."""
