"""Genes that an assay did not measure."""
