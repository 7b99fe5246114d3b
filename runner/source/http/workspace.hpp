// What it takes to answer one infer request after the other, kept to be used again.
#pragma once

#include "http/body_budget.hpp"
#include "http/buffer.hpp"
#include "http/infer_request.hpp"

namespace packager::http {

struct Workspace {
    explicit Workspace(const WireSignature& signature) : request(signature) {}

    InferRequest request;
    JsonParser parser;
    Buffer decompressed;
    Reservation decompressed_reservation;

    // Returns what a single request needed.
    void clear() {
        request.trim();
        parser.trim();
        decompressed.clear();
        decompressed_reservation.release();
    }
};

}  // namespace packager::http
