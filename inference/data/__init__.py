"""What programs read: fields and their checks, storage, minibatches."""
