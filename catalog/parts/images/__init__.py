"""Parts of programs of images."""
