"""All that is said to people: results, progress, errors."""
