"""Who does which piece of a study, and where: claims, and what starts workers."""
