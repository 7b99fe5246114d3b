// Arrays as numpy prints them.
#pragma once

#include <string>

#include "array.hpp"

namespace packager {

// np.array2string(array, threshold=array.size), with numpy's default options.
std::string print_array(const Array& array);

}  // namespace packager
