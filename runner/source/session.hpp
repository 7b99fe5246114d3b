// The model in onnxruntime, whose library is mapped from the executable itself.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "array.hpp"
#include "bundle.hpp"
#include "executable.hpp"
#include "pieces.hpp"

namespace packager {

struct SessionSettings {
    int threads = 0;  // intra-op threads; 0: the cores that affinity and quota allow
    bool is_shared = false;  // by threads that run the model at the same time
};

// A tensor as the model itself declares it; -1 and names for dynamic dims.
struct ModelTensor {
    std::string name;
    DType dtype = DType::float32;
    std::vector<Dim> shape;
};

// A session. `run` may be called from several threads at once.
class Session {
public:
    // Waits for the check of the library before any of its code runs, and compares the weights while the session is
    // made. There may be one session in a process. Throws Error (integrity-failed, not-a-bundle, backend-unavailable).
    Session(const Executable& executable, LibraryCheck& library, const Bundle& bundle, const SessionSettings& settings);
    ~Session();
    Session(const Session&) = delete;
    Session& operator=(const Session&) = delete;
    Session(Session&&) = delete;
    Session& operator=(Session&&) = delete;

    // Takes the inputs in any order, a bfloat16 one as float32, and returns the outputs in the model's order; their
    // memory is onnxruntime's, and bfloat16 is returned as it is. Throws Error (inference-failed).
    Arrays run(const Arrays& inputs) const;

    const std::vector<ModelTensor>& inputs() const;
    const std::vector<ModelTensor>& outputs() const;

private:
    struct State;
    std::unique_ptr<State> state_;
};

}  // namespace packager
