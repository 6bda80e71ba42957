package litestream

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Sizes in bytes of the parts of SQLite's WAL, see
// https://www.sqlite.org/fileformat2.html#the_write_ahead_log.
const (
	WALHeaderSize      = 32
	WALFrameHeaderSize = 24

	// WALIndexHeaderSize is the size of the header of the -shm file.
	WALIndexHeaderSize = 136
)

// Where the checksums stand in a WAL header and in a frame header.
const (
	WALHeaderChecksumOffset      = 24
	WALFrameHeaderChecksumOffset = 16
)

const (
	walMagic   = 0x377f0682 // its low bit set: big-endian checksums
	walVersion = 3007000

	minPageSize = 512
	maxPageSize = 65536
)

// Checksum continues SQLite's WAL checksum (s0, s1) over b, read as 32-bit
// words in the byte order that the WAL header's magic number names. The length
// of b must be a multiple of 8; a shorter rest is not summed.
func Checksum(bo binary.ByteOrder, s0, s1 uint32, b []byte) (uint32, uint32) {
	if bo == binary.ByteOrder(binary.BigEndian) || nativeBigEndian && bo == binary.ByteOrder(binary.NativeEndian) {
		return checksumBE(s0, s1, b)
	}
	return checksumLE(s0, s1, b)
}

// nativeBigEndian is the byte order in which SQLite writes checksums on this
// machine. It reads both.
var nativeBigEndian = binary.NativeEndian.Uint16([]byte{0, 1}) == 1

// The sums are written as (s + word) + other: only the second addition waits
// for the step before, which doubles the speed.

func checksumLE(s0, s1 uint32, b []byte) (uint32, uint32) {
	for len(b) >= 32 {
		q := b[:32:32]
		s0 = s0 + binary.LittleEndian.Uint32(q) + s1
		s1 = s1 + binary.LittleEndian.Uint32(q[4:]) + s0
		s0 = s0 + binary.LittleEndian.Uint32(q[8:]) + s1
		s1 = s1 + binary.LittleEndian.Uint32(q[12:]) + s0
		s0 = s0 + binary.LittleEndian.Uint32(q[16:]) + s1
		s1 = s1 + binary.LittleEndian.Uint32(q[20:]) + s0
		s0 = s0 + binary.LittleEndian.Uint32(q[24:]) + s1
		s1 = s1 + binary.LittleEndian.Uint32(q[28:]) + s0
		b = b[32:]
	}
	for len(b) >= 8 {
		s0 = s0 + binary.LittleEndian.Uint32(b) + s1
		s1 = s1 + binary.LittleEndian.Uint32(b[4:]) + s0
		b = b[8:]
	}
	return s0, s1
}

func checksumBE(s0, s1 uint32, b []byte) (uint32, uint32) {
	for len(b) >= 32 {
		q := b[:32:32]
		s0 = s0 + binary.BigEndian.Uint32(q) + s1
		s1 = s1 + binary.BigEndian.Uint32(q[4:]) + s0
		s0 = s0 + binary.BigEndian.Uint32(q[8:]) + s1
		s1 = s1 + binary.BigEndian.Uint32(q[12:]) + s0
		s0 = s0 + binary.BigEndian.Uint32(q[16:]) + s1
		s1 = s1 + binary.BigEndian.Uint32(q[20:]) + s0
		s0 = s0 + binary.BigEndian.Uint32(q[24:]) + s1
		s1 = s1 + binary.BigEndian.Uint32(q[28:]) + s0
		b = b[32:]
	}
	for len(b) >= 8 {
		s0 = s0 + binary.BigEndian.Uint32(b) + s1
		s1 = s1 + binary.BigEndian.Uint32(b[4:]) + s0
		b = b[8:]
	}
	return s0, s1
}

// walHeader is the 32-byte header of a WAL.
//
//	0        4        8        12       16       20       24       28       32
//	+--------+--------+--------+--------+--------+--------+--------+--------+
//	| magic  | version| page   | ckpt   | salt-1 | salt-2 | sum-1  | sum-2  |
//	|        |        | size   | seq    |        |        | of [0, 24)      |
//	+--------+--------+--------+--------+--------+--------+--------+--------+
//
// All fields are big-endian. The zero value stands for no header.
type walHeader struct {
	raw          [WALHeaderSize]byte
	pageSize     int // bytes: a power of two from 512 to 65536
	salt1, salt2 uint32
	sum1, sum2   uint32
	bigEndian    bool // of the checksums
}

// parseWALHeader decodes and verifies the first 32 bytes of b.
func parseWALHeader(b []byte) (h walHeader, err error) {
	if len(b) < WALHeaderSize {
		return h, errors.New("wal header is truncated")
	}
	b = b[:WALHeaderSize]
	magic := binary.BigEndian.Uint32(b)
	if magic&^1 != walMagic {
		return h, fmt.Errorf("wal header has magic number %#08x", magic)
	}
	if v := binary.BigEndian.Uint32(b[4:]); v != walVersion {
		return h, fmt.Errorf("wal header has format version %d, want %d", v, walVersion)
	}
	pageSize := binary.BigEndian.Uint32(b[8:])
	if !isPageSize(int64(pageSize)) {
		return h, fmt.Errorf("wal header has page size %d", pageSize)
	}
	h = walHeader{
		raw:       [WALHeaderSize]byte(b),
		pageSize:  int(pageSize),
		salt1:     binary.BigEndian.Uint32(b[16:]),
		salt2:     binary.BigEndian.Uint32(b[20:]),
		sum1:      binary.BigEndian.Uint32(b[WALHeaderChecksumOffset:]),
		sum2:      binary.BigEndian.Uint32(b[WALHeaderChecksumOffset+4:]),
		bigEndian: magic&1 == 1,
	}
	if s1, s2 := h.checksum(0, 0, b[:WALHeaderChecksumOffset]); s1 != h.sum1 || s2 != h.sum2 {
		return walHeader{}, errors.New("wal header has a wrong checksum")
	}
	return h, nil
}

func isPageSize(n int64) bool {
	return n >= minPageSize && n <= maxPageSize && n&(n-1) == 0
}

func (h *walHeader) isZero() bool { return h.pageSize == 0 }

func (h *walHeader) checksum(s1, s2 uint32, b []byte) (uint32, uint32) {
	if h.bigEndian {
		return checksumBE(s1, s2, b)
	}
	return checksumLE(s1, s2, b)
}

func (h *walHeader) byteOrder() binary.ByteOrder {
	if h.bigEndian {
		return binary.BigEndian
	}
	return binary.LittleEndian
}

// frameSize is the size of a frame: its header and one page.
func (h *walHeader) frameSize() int { return WALFrameHeaderSize + h.pageSize }

// walFrame is the header of one frame. Its checksum is cumulative: it covers
// the WAL header, every frame before, and the frame's own first 8 bytes and
// page.
//
//	0        4        8        12       16       20       24
//	+--------+--------+--------+--------+--------+--------+-----------+
//	| page   | commit | salt-1 | salt-2 | sum-1  | sum-2  | page data |
//	| number | size   |        |        |        |        |           |
//	+--------+--------+--------+--------+--------+--------+-----------+
type walFrame struct {
	pgno   uint32 // from 1
	commit uint32 // database size in pages after a commit; 0 in any other frame
}

// walCursor is a verified place in a WAL: the checksums of everything before
// offset chain from the header, which stands at offset 0 (I3). The zero value
// is the start of a WAL whose header is not known yet.
type walCursor struct {
	header     walHeader
	offset     int64
	sum1, sum2 uint32
	last       [WALFrameHeaderSize]byte // header of the frame that ends at offset
}

// startWAL returns the cursor just after h.
func startWAL(h walHeader) walCursor {
	return walCursor{header: h, offset: WALHeaderSize, sum1: h.sum1, sum2: h.sum2}
}

// owns reports whether a frame has the salts of the WAL that h begins.
func (h *walHeader) owns(frame []byte) bool {
	return binary.BigEndian.Uint32(frame[8:]) == h.salt1 && binary.BigEndian.Uint32(frame[12:]) == h.salt2
}

// next verifies the frame at the cursor, which b begins with, and moves behind
// it. It returns false, and does not move, if the header is not known, b is
// shorter than a frame, or the frame does not continue the WAL.
func (c *walCursor) next(b []byte) (f walFrame, ok bool) {
	n := c.header.frameSize()
	if len(b) < n || c.header.isZero() {
		return f, false
	}
	b = b[:n]
	if !c.header.owns(b) {
		return f, false
	}
	f.pgno = binary.BigEndian.Uint32(b)
	if f.pgno == 0 {
		return f, false
	}
	s1, s2 := c.header.checksum(c.sum1, c.sum2, b[:8])
	s1, s2 = c.header.checksum(s1, s2, b[WALFrameHeaderSize:])
	if binary.BigEndian.Uint32(b[16:]) != s1 || binary.BigEndian.Uint32(b[20:]) != s2 {
		return f, false
	}
	f.commit = binary.BigEndian.Uint32(b[4:])
	c.offset += int64(n)
	c.sum1, c.sum2 = s1, s2
	c.last = [WALFrameHeaderSize]byte(b)
	return f, true
}

// frames returns how many frames stand before the cursor.
func (c *walCursor) frames() int64 {
	if c.offset < WALHeaderSize {
		return 0
	}
	return (c.offset - WALHeaderSize) / int64(c.header.frameSize())
}

// walScan finds the committed frames of a WAL in one pass over its bytes.
type walScan struct {
	tip    walCursor // behind the last frame that continues the WAL
	commit walCursor // behind the last commit; walCursor.offset is 0 or WALHeaderSize before the first
	begun  walCursor // where the transaction of that commit began, if the scan did not begin inside it
	pages  uint32    // database size in pages after that commit; 0 if this scan saw none
}

func newWALScan(c walCursor) walScan { return walScan{tip: c, commit: c} }

// feed verifies the whole frames that b, the bytes at the tip, begins with.
// It returns how many bytes they have, and how many of these are committed.
func (s *walScan) feed(b []byte) (valid, committed int) {
	n := s.tip.header.frameSize()
	for {
		f, ok := s.tip.next(b[valid:])
		if !ok {
			return valid, committed
		}
		valid += n
		if f.commit != 0 {
			s.begun, s.commit, s.pages = s.commit, s.tip, f.commit
			committed = valid
		}
	}
}
