package litestream

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc64"
	"io/fs"
	"strings"

	"example.com/litestream/internal/atomicfile"
	"example.com/litestream/internal/fsys"
)

// followerState is where a follower stands in the upstream's history. The
// cursor has what verifies the next frame; it is zero at the start of an index.
type followerState struct {
	pos    Pos
	cursor walCursor
}

// storedState is a followerState on disk. It is never ahead of what is durable
// in the database, and may be behind it: then the first transaction after the
// next start, which reaches the upstream's present position, covers the
// difference. It does so only if the upstream still has what the database has.
// A power loss may take both back, the upstream further than the database: what
// the upstream writes then in the place of what it lost would be applied to
// pages of the lost changes.
type storedState struct {
	followerState
	clean bool   // the database is not beyond it
	boot  bootID // when it was written; not if it is clean
}

// usable reports whether a follower can go on from the state while the machine
// runs that boot names.
func (s *storedState) usable(boot bootID) bool {
	return !s.pos.IsZero() && (s.clean || s.boot == boot && boot != bootID{})
}

// bootID names a run of the machine's operating system. It is zero where the
// system does not tell.
type bootID [16]byte

// readBootID returns the present one, see random(4) of Linux.
func readBootID() (id bootID) {
	text, err := readFile(fsys.OS, "/proc/sys/kernel/random/boot_id")
	if err != nil {
		return bootID{}
	}
	b, err := hex.DecodeString(strings.ReplaceAll(strings.TrimSpace(string(text)), "-", ""))
	if err != nil || len(b) != len(id) {
		return bootID{}
	}
	return bootID(b)
}

// storedStateSize is the size in bytes of an encoded storedState.
//
//	0        16         32      40       48            80             104     112    128      136
//	+--------+----------+-------+--------+-------------+--------------+-------+------+--------+
//	| magic  |generation| index | offset | WAL header  | last frame's | clean | boot | crc-64 |
//	|        | (hex)    |       |        |             | header       |       |      |        |
//	+--------+----------+-------+--------+-------------+--------------+-------+------+--------+
//
// Numbers are big-endian, and clean is 1 or 0. Where the cursor is at the start
// of an index or behind the header, the frame's header is zero. Version 1 had no
// word of clean, and is of no use.
const (
	storedStateSize  = 136
	storedStateMagic = "litestream flw 2"
)

// MarshalBinary returns the 136 bytes of the state.
func (s *storedState) MarshalBinary() ([]byte, error) {
	b := make([]byte, 0, storedStateSize)
	b = append(b, storedStateMagic...)
	b = append(b, s.pos.Generation...)
	b = binary.BigEndian.AppendUint64(b, uint64(s.pos.Index))
	b = binary.BigEndian.AppendUint64(b, uint64(s.pos.Offset))
	b = append(b, s.cursor.header.raw[:]...)
	b = append(b, s.cursor.last[:]...)
	clean := uint64(0)
	if s.clean {
		clean = 1
	}
	b = binary.BigEndian.AppendUint64(b, clean)
	b = append(b, s.boot[:]...)
	b = binary.BigEndian.AppendUint64(b, crc64.Checksum(b, crcTable))
	if len(b) != storedStateSize {
		return nil, fmt.Errorf("marshal follower state: generation %q", s.pos.Generation)
	}
	return b, nil
}

// UnmarshalBinary sets s from what MarshalBinary returned. After an error s is
// as it was.
func (s *storedState) UnmarshalBinary(b []byte) error {
	if len(b) != storedStateSize {
		return fmt.Errorf("follower state has %d bytes, want %d", len(b), storedStateSize)
	}
	body, sum := b[:storedStateSize-8], binary.BigEndian.Uint64(b[storedStateSize-8:])
	if crc64.Checksum(body, crcTable) != sum || string(b[:16]) != storedStateMagic {
		return errors.New("follower state has a wrong checksum")
	}
	// The fields in the form that ParsePos verifies.
	pos, err := ParsePos(fmt.Sprintf("%s/%s:%s", b[16:32], hex.EncodeToString(b[32:40]), hex.EncodeToString(b[40:48])))
	if err != nil {
		return fmt.Errorf("follower state: %w", err)
	}
	cursor, err := cursorAt(b[48:80], b[80:104], pos.Offset)
	if err != nil {
		return fmt.Errorf("follower state: %w", err)
	}
	*s = storedState{followerState{pos, cursor}, binary.BigEndian.Uint64(b[104:]) == 1, bootID(b[112:128])}
	return nil
}

// cursorAt returns the cursor at an offset of the WAL with a header, behind the
// frame with the header last, whose checksum is that of everything before.
func cursorAt(header, last []byte, offset int64) (c walCursor, err error) {
	if offset == 0 {
		return c, nil
	}
	h, err := parseWALHeader(header)
	if err != nil {
		return c, err
	}
	c = startWAL(h)
	switch frames := offset - WALHeaderSize; {
	case frames == 0:
		return c, nil
	case frames < 0 || frames%int64(h.frameSize()) != 0:
		return walCursor{}, fmt.Errorf("offset %d is not behind a frame of %d bytes", offset, h.frameSize())
	}
	c.offset = offset
	c.last = [WALFrameHeaderSize]byte(last)
	c.sum1 = binary.BigEndian.Uint32(last[WALFrameHeaderChecksumOffset:])
	c.sum2 = binary.BigEndian.Uint32(last[WALFrameHeaderChecksumOffset+4:])
	return c, nil
}

// readFollowerState returns the zero state, from which a snapshot is asked
// for, if there is none that can be read.
func readFollowerState(fsy fsys.FS, name string) (s storedState, err error) {
	b, err := readFile(fsy, name)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	} else if err != nil {
		return s, fmt.Errorf("read follower state: %w", err)
	}
	if err := s.UnmarshalBinary(b); err != nil {
		tracef("%s: %v", name, err) // torn: the snapshot makes up for it
	}
	return s, nil
}

// writeFollowerState replaces the state, durably.
func writeFollowerState(fsy fsys.FS, name string, s storedState) error {
	b, err := s.MarshalBinary()
	if err != nil {
		return err
	}
	opt := metaFile
	opt.Durable = true
	if old, err := readFile(fsy, name); err == nil && bytes.Equal(old, b) {
		return nil
	}
	return atomicfile.WriteBytes(fsy, name, opt, b)
}
