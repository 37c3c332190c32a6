"""Arrays of other libraries, and files: how data comes in and goes out."""
