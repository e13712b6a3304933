"""What the documentation measures: speed, other programs, families of models; run from a checkout."""
