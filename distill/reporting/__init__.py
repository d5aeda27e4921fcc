"""What a person reads in the end: results, report, model card."""
