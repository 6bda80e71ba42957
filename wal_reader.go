package litestream

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// ReadWALFields reads a whole WAL from r, which begins with the header, and
// verifies it: every frame must continue the checksums of those before, and
// the data must end just after the header or a frame. Nothing behind the last
// valid frame is forgiven, so stale frames of an earlier WAL are an error.
//
// It returns the salts, the checksum of everything read, the byte order of
// checksums, the header, and the last frame with its page, nil if there is no
// frame. After an error they are all zero. Data that ends too early matches
// [io.ErrUnexpectedEOF].
func ReadWALFields(r io.Reader, pageSize int) (salt0, salt1, chksum0, chksum1 uint32, byteOrder binary.ByteOrder, hdr, frame []byte, err error) {
	c, frame, err := readWAL(r, pageSize)
	if err != nil {
		return 0, 0, 0, 0, nil, nil, nil, fmt.Errorf("read wal: %w", err)
	}
	h := c.header
	return h.salt1, h.salt2, c.sum1, c.sum2, h.byteOrder(), h.raw[:], frame, nil
}

// readWAL verifies r to its end. It returns the cursor there and the last frame.
func readWAL(r io.Reader, pageSize int) (c walCursor, frame []byte, err error) {
	var b [WALHeaderSize]byte
	if _, err := io.ReadFull(r, b[:]); err == io.EOF || err == io.ErrUnexpectedEOF {
		return c, nil, fmt.Errorf("header: %w", io.ErrUnexpectedEOF)
	} else if err != nil {
		return c, nil, fmt.Errorf("header: %w", err)
	}
	h, err := parseWALHeader(b[:])
	if err != nil {
		return c, nil, err
	}
	if h.pageSize != pageSize {
		return c, nil, fmt.Errorf("wal header has page size %d, want %d", h.pageSize, pageSize)
	}
	c = startWAL(h)
	buf := make([]byte, h.frameSize())
	for {
		if _, err := io.ReadFull(r, buf); err == io.EOF {
			return c, frame, nil // ReadFull read nothing: buf still holds the frame
		} else if err != nil {
			return c, nil, fmt.Errorf("frame at offset %d: %w", c.offset, err)
		}
		if _, ok := c.next(buf); !ok {
			return c, nil, fmt.Errorf("frame at offset %d: %w", c.offset, errBrokenChain)
		}
		frame = buf
	}
}

var errBrokenChain = errors.New("does not continue the wal: wrong salt, page number or checksum")
