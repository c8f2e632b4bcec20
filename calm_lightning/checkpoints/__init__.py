"""Released weights into the platform: the authors' tensor names translated into our modules' names."""
