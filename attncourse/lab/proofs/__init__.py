"""The theorems of the map, a file for each family; `attncourse.lab.theorems` measures them."""
