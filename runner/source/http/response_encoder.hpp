// Arrays to the body of an answer: JSON, and bytes after it for the outputs that a request wants so.
#pragma once

#include <string>
#include <vector>

#include "array.hpp"
#include "http/infer_request.hpp"
#include "http/messages.hpp"
#include "http/wire.hpp"

namespace packager::http {

class ResponseEncoder {
public:
    explicit ResponseEncoder(const WireSignature& signature);

    // Sets the answer to the outputs that a request asked for; bytes are not copied. Throws Rejected, 400, for values
    // that JSON lacks.
    void encode(const InferRequest& request, const Arrays& outputs, Response& response) const;

private:
    const WireSignature& signature_;
    std::string names_;  // {"model_name":"…","model_version":"…"
    std::vector<std::string> heads_;  // {"name":"…","datatype":"…","shape":[
};

}  // namespace packager::http
