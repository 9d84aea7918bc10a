"""The RecBole trainers of this package."""
