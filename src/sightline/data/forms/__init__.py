"""The forms in which rows are written, each as a function that reads it and, where Sightline writes it, one back."""
