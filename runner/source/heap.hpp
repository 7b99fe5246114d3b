// The memory that onnxruntime takes when it starts: 8 MB in blocks of a few bytes. Each of its pages is a fault, and
// that is a tenth of the time to the first prediction.
#pragma once

#include <future>

namespace packager {

// Lets malloc have that memory, and a thread touch its pages before onnxruntime does, who has one thread at that time.
std::future<void> prepare_heap();

}  // namespace packager
