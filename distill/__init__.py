"""Knowledge distillation for semantic segmentation: a teacher, a student, and the loss between them."""
