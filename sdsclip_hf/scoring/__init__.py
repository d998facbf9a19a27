"""From a dataset and a teacher to a folder of candidate captions with the teacher's errors."""
