// Package walcheck checks what a replica or a shadow WAL holds against the
// invariants of the library. It shares no code with the library, so that a
// mistake is not made twice.
package walcheck

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/pierrec/lz4/v4"
)

// Segment is one stored segment.
type Segment struct {
	Index  int
	Offset int64
	Data   []byte // compressed
}

// Generation checks the segments of one generation from its oldest snapshot
// on: indexes are dense, segments tile each index from 0 (I1), each ends at
// the header or at a commit (I2), checksums chain from the header (I3), and
// each is exactly one LZ4 frame. It returns the WAL of each index.
func Generation(snapshots []int, segments []Segment) (map[int][]byte, error) {
	if len(snapshots) == 0 {
		return nil, errors.New("no snapshot")
	}
	slices.SortFunc(segments, func(a, b Segment) int {
		return cmp.Or(cmp.Compare(a.Index, b.Index), cmp.Compare(a.Offset, b.Offset))
	})
	wals := make(map[int][]byte)
	var wal chain // of index
	index := slices.Min(snapshots)
	for _, seg := range segments {
		if seg.Index < index && len(wals) == 0 {
			continue // older than the oldest snapshot
		}
		if seg.Index == index+1 && len(wals[index]) > 0 {
			index++
			wal = chain{}
		}
		if seg.Index != index {
			return nil, fmt.Errorf("segment %d/%#x: index %d is missing", seg.Index, seg.Offset, index)
		}
		b, err := decompress(seg.Data)
		if err != nil {
			return nil, fmt.Errorf("segment %d/%#x: %w", seg.Index, seg.Offset, err)
		}
		if seg.Offset != int64(len(wals[index])) {
			return nil, fmt.Errorf("segment %d/%#x: the one before ends at %#x", seg.Index, seg.Offset, len(wals[index]))
		}
		wals[index] = append(wals[index], b...)
		if err := wal.add(b); err != nil {
			return nil, fmt.Errorf("segment %d/%#x: %w", seg.Index, seg.Offset, err)
		}
		if before := wals[index-1]; len(before) > 0 && bytes.Equal(before[:32], wals[index][:32]) {
			return nil, fmt.Errorf("segment %d/%#x: is of the same wal as the index before", seg.Index, seg.Offset)
		}
	}
	return wals, nil
}

// decompress reads one frame and insists that nothing follows it.
func decompress(z []byte) ([]byte, error) {
	if len(z) < 11 || string(z[:4]) != "\x04\x22\x4d\x18" {
		return nil, errors.New("not an LZ4 frame")
	}
	b, err := io.ReadAll(lz4.NewReader(bytes.NewReader(z)))
	if err != nil {
		return nil, err
	}
	if n := frameLen(z); n != len(z) {
		return nil, fmt.Errorf("LZ4 frame ends at byte %d of %d", n, len(z))
	}
	return b, nil
}

// frameLen returns the length of the LZ4 frame that z begins with, by walking
// over its blocks. See the LZ4 frame format description.
func frameLen(z []byte) int {
	flags := z[4]
	n := 7
	if flags&0x08 != 0 {
		n += 8 // content size
	}
	for n+4 <= len(z) {
		size := int(binary.LittleEndian.Uint32(z[n:]) &^ (1 << 31))
		n += 4
		if size == 0 {
			if flags&0x04 != 0 {
				n += 4 // content checksum
			}
			return n
		}
		n += size
		if flags&0x10 != 0 {
			n += 4 // block checksum
		}
	}
	return -1
}

// WAL checks one WAL from its header on: salts, checksums, and that it ends
// with a commit. See https://www.sqlite.org/fileformat2.html#walformat.
func WAL(b []byte) error {
	var c chain
	return c.add(b)
}

// chain is the state of the check of a WAL that comes in parts.
type chain struct {
	order    binary.ByteOrder // of the checksums; nil before the header
	salts    []byte
	pageSize int
	s0, s1   uint32
	frames   int
}

// add checks the next part, which ends with a commit or, if it is the first,
// with the header.
func (c *chain) add(b []byte) error {
	commit := false
	if c.order == nil {
		if len(b) < 32 {
			return errors.New("wal is shorter than its header")
		}
		if err := c.header(b[:32]); err != nil {
			return err
		}
		b, commit = b[32:], true
	}
	for ; len(b) > 0; c.frames++ {
		if len(b) < 24+c.pageSize {
			return fmt.Errorf("frame %d is cut", c.frames)
		}
		frame := b[:24+c.pageSize]
		b = b[24+c.pageSize:]
		if !bytes.Equal(frame[8:16], c.salts) {
			return fmt.Errorf("frame %d has other salts", c.frames)
		}
		c.sum(frame[:8])
		c.sum(frame[24:])
		if !c.matches(frame[16:]) {
			return fmt.Errorf("frame %d has a wrong checksum", c.frames)
		}
		commit = binary.BigEndian.Uint32(frame[4:]) != 0
	}
	if !commit {
		return errors.New("wal does not end with a commit")
	}
	return nil
}

func (c *chain) header(b []byte) error {
	switch magic := binary.BigEndian.Uint32(b); magic {
	case 0x377f0682:
		c.order = binary.LittleEndian
	case 0x377f0683:
		c.order = binary.BigEndian
	default:
		return fmt.Errorf("wal has magic number %#x", magic)
	}
	c.pageSize = int(binary.BigEndian.Uint32(b[8:]))
	if c.pageSize < 512 || c.pageSize > 65536 {
		return fmt.Errorf("wal has page size %d", c.pageSize)
	}
	c.sum(b[:24])
	if !c.matches(b[24:]) {
		return errors.New("wal header has a wrong checksum")
	}
	c.salts = bytes.Clone(b[16:24])
	return nil
}

func (c *chain) sum(p []byte) {
	for i := 0; i < len(p); i += 8 {
		c.s0 += c.order.Uint32(p[i:]) + c.s1
		c.s1 += c.order.Uint32(p[i+4:]) + c.s0
	}
}

func (c *chain) matches(p []byte) bool {
	return binary.BigEndian.Uint32(p) == c.s0 && binary.BigEndian.Uint32(p[4:]) == c.s1
}
