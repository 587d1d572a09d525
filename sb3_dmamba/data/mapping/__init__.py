"""Arrays in files: written a row at a time, mapped, read without keeping their pages."""
