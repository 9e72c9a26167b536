"""The page that is made of the results."""
