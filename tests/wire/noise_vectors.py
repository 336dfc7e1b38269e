"""Known answers of the noise, for every implementation of it. `g` was checked against 60-digit arithmetic."""

RANDOM123_PHILOX4X32_10 = [
    # counter, key, output: the published known-answer file of Random123
    (
        (0x00000000, 0x00000000, 0x00000000, 0x00000000),
        (0x00000000, 0x00000000),
        (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    ),
    (
        (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
        (0xFFFFFFFF, 0xFFFFFFFF),
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]

KEYS = [
    # (seed, prompt index, choice index), key
    ((0, 0, 0), (0x292E7A08, 0x7F846771)),
    ((1, 0, 0), (0x00AD9348, 0x50C29A68)),
    ((2**64 - 1, 0, 0), (0x8FF2C389, 0x82AE08C5)),
    ((1, 1, 0), (0x5C01487A, 0xE8FDA4D1)),
    ((1, 0, 1), (0xC7EEBE7F, 0xDFCFF240)),
    ((20240229, 3, 7), (0xB2439944, 0x094ABCA7)),
]

NOISE = [
    # key, (stream, position, rewind epoch, vocabulary id), word, u, g
    ((0x292E7A08, 0x7F846771), (0, 0, 0, 0), 0x2C179B72, "0x1.60bcdcp-3", "0x1.aa766ap+0"),
    ((0x292E7A08, 0x7F846771), (0, 0, 0, 1), 0xDFF180AC, "0x1.bfe302p-1", "-0x1.76663ep-1"),
    ((0x292E7A08, 0x7F846771), (0, 1, 0, 49150), 0x294EC9DC, "0x1.4a764ep-3", "0x1.bcc846p+0"),
    ((0x292E7A08, 0x7F846771), (0, 131071, 2, 151935), 0x199D060B, "0x1.99d06p-4", "0x1.1ff9fep+1"),
    ((0x8FF2C389, 0x82AE08C5), (0, 0, 0, 0), 0x4097F873, "0x1.025fe2p-2", "0x1.3c3598p+0"),
    ((0x8FF2C389, 0x82AE08C5), (0, 0, 0, 1), 0x2E5CBCFA, "0x1.72e5e8p-3", "0x1.9c46dcp+0"),
    ((0x8FF2C389, 0x82AE08C5), (0, 1, 0, 49150), 0xC94F07DA, "0x1.929e1p-1", "-0x1.bc73b4p-2"),
    ((0x8FF2C389, 0x82AE08C5), (0, 131071, 2, 151935), 0x5F3C7D9C, "0x1.7cf1f6p-2", "0x1.87c808p-1"),
    ((0xB2439944, 0x094ABCA7), (0, 0, 0, 0), 0x2BA68F0C, "0x1.5d3478p-3", "0x1.ad4c2ap+0"),
    ((0xB2439944, 0x094ABCA7), (0, 0, 0, 1), 0x14046F13, "0x1.4046f2p-4", "0x1.410afp+1"),
    ((0xB2439944, 0x094ABCA7), (0, 1, 0, 49150), 0x6D4744CE, "0x1.b51d14p-2", "0x1.2bf2a6p-1"),
    ((0xB2439944, 0x094ABCA7), (0, 131071, 2, 151935), 0xB720CF48, "0x1.6e419ep-1", "-0x1.d3945ap-3"),
]

WORDS = [
    # word, u, g: the ends, where clamping and rounding act
    (0x00000000, "0x1.0p-33", "0x1.6dfb52p+4"),
    (0x00000001, "0x1.0p-32", "0x1.62e430p+4"),
    (0x00000002, "0x1.0p-31", "0x1.57cd0ep+4"),
    (0x7FFFFFFF, "0x1.0p-1", "0x1.774f2ap-2"),
    (0x80000000, "0x1.0p-1", "0x1.774f2ap-2"),
    (0xFFFFFF7F, "0x1.fffffep-1", "-0x1.67e092p+1"),
    (0xFFFFFFFF, "0x1.fffffep-1", "-0x1.67e092p+1"),
]
