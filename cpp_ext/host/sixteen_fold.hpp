// The sum of sixteen lanes in the one order of all processors; included by each sixteen*.hpp once it has its type.
#pragma once

SPEECHSSM_OPEN

inline float fold(Sixteen a) {
    float lane[16];
    store_sixteen(lane, a);
    for (int apart = 8; apart > 0; apart /= 2)
        for (int i = 0; i < apart; ++i) lane[i] = lane[i] + lane[i + apart];
    return lane[0];
}

SPEECHSSM_CLOSE
