"""Is a cohort what it says it is? One detector a file; none needs a network, none changes anything."""
