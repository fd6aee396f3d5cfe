// A pool of threads for the loops of kernels. Whoever calls takes a part itself.
//
// Waiting  Between two loops of one step a thread spins for a moment, because waking it takes longer than most loops;
//          then it sleeps, so that an idle server costs nothing.
// Bits     A loop's parts are whole results: how many threads there are changes who computes them, never how.

#pragma once

#include <algorithm>
#include <functional>

namespace ps {

// Call body(begin, end) so that all of [0, n) is covered, in at most `threads` parts whose bounds are multiples of grain.
void parallel(long n, long grain, int threads, const std::function<void(long, long)>& body);

}  // namespace ps
