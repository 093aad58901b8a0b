"""Image Semantic Assessment: how many entities an image has and how much of a story it tells, as two scores."""
