"""The RecBole model classes of this package."""
