"""Programs for the project's developers: the word checker and the release."""
