"""The scorer of image semantics: data, agreement, extraction and synthetic scenes."""
