package litestream

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc64"
	"io/fs"

	"example.com/litestream/internal/atomicfile"
	"example.com/litestream/internal/fsys"
)

// followerState is where a follower stands in the upstream's history. The
// cursor has what verifies the next frame; it is zero at the start of an index.
//
// The state on disk is never ahead of what is durable in the database, and may
// be behind it: then the first transaction after the next start, which reaches
// the upstream's present position, covers the difference.
type followerState struct {
	pos    Pos
	cursor walCursor
}

// followerStateSize is the size in bytes of an encoded followerState.
//
//	0        16         32      40       48            80             104      112
//	+--------+----------+-------+--------+-------------+--------------+--------+
//	| magic  |generation| index | offset | WAL header  | last frame's | crc-64 |
//	|        | (hex)    |       |        |             | header       |        |
//	+--------+----------+-------+--------+-------------+--------------+--------+
//
// Numbers are big-endian. Where the cursor is at the start of an index or
// behind the header, the frame's header is zero.
const (
	followerStateSize  = 112
	followerStateMagic = "litestream flw 1"
)

// MarshalBinary returns the 112 bytes of the state.
func (s *followerState) MarshalBinary() ([]byte, error) {
	b := make([]byte, 0, followerStateSize)
	b = append(b, followerStateMagic...)
	b = append(b, s.pos.Generation...)
	b = binary.BigEndian.AppendUint64(b, uint64(s.pos.Index))
	b = binary.BigEndian.AppendUint64(b, uint64(s.pos.Offset))
	b = append(b, s.cursor.header.raw[:]...)
	b = append(b, s.cursor.last[:]...)
	b = binary.BigEndian.AppendUint64(b, crc64.Checksum(b, crcTable))
	if len(b) != followerStateSize {
		return nil, fmt.Errorf("marshal follower state: generation %q", s.pos.Generation)
	}
	return b, nil
}

// UnmarshalBinary sets s from what MarshalBinary returned. After an error s is
// as it was.
func (s *followerState) UnmarshalBinary(b []byte) error {
	if len(b) != followerStateSize {
		return fmt.Errorf("follower state has %d bytes, want %d", len(b), followerStateSize)
	}
	body, sum := b[:followerStateSize-8], binary.BigEndian.Uint64(b[followerStateSize-8:])
	if crc64.Checksum(body, crcTable) != sum || string(b[:16]) != followerStateMagic {
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
	*s = followerState{pos, cursor}
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
// for, if there is none that can be used.
func readFollowerState(fsy fsys.FS, name string) (s followerState, err error) {
	b, err := readFile(fsy, name)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	} else if err != nil {
		return s, fmt.Errorf("read follower state: %w", err)
	}
	if err := s.UnmarshalBinary(b); err != nil {
		Tracef("%s: %v", name, err) // torn: the snapshot makes up for it
	}
	return s, nil
}

// writeFollowerState replaces the state, durably.
func writeFollowerState(fsy fsys.FS, name string, s followerState) error {
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
