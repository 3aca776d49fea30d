"""The paper's own studies, as applications of the package."""
