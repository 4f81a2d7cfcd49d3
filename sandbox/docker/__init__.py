"""The back end `docker`: containers of an engine, and the image that they are made from."""
