// Package streamhttp carries the stream of a database to its followers over
// HTTP: a [Handler] in the program that writes, a [Client] in each that
// follows.
//
//	http.Handle("/stream", handler)          // the primary
//	db.StreamClient = streamhttp.NewClient(  // a follower
//		"https://primary.example/stream", "app")
//
// TLS, the listener and the limits of a server are the host's: the handler
// runs in its [net/http.Server], over HTTP/1.1 or HTTP/2, and the client uses
// its [net/http.Client].
//
// # Protocol
//
// A follower sends GET with two query parameters and no body: db, the name
// that the host gave the database, and pos, the position from which to go on,
// as [litestream.Pos.String] writes it; empty or absent at the beginning. Any
// other parameter is refused.
//
//	GET /stream?db=app&pos=0123456789abcdef/0000000000000003:0000000000001038 HTTP/1.1
//	Litestream-Stream-Version: 1
//
// The response has the page size of the database in a header and the records
// of the stream as its body, for as long as both sides live. Each is a
// [litestream.StreamRecordHeader] of 40 bytes and as many bytes as it says.
//
//	HTTP/1.1 200 OK
//	Content-Type: application/vnd.litestream.stream
//	Litestream-Stream-Version: 1
//	Litestream-Page-Size: 4096
//
//	+-----------+------+-----------+------+-----
//	| header 40 | body | header 40 | body | ...
//	+-----------+------+-----------+------+-----
//
// When nothing was sent for a while, the handler sends a heartbeat: the header
// of a segment of size 0 at the position that the database has reached. They
// may also come first, while the database is read for a snapshot. So
// each side notices within seconds that the other is gone or stuck: the client
// by silence, the handler by a write that does not end.
//
// The body ends between two records when the handler or its database is
// closed. Any other end is a broken stream. Errors are plain text with a status
// of 4xx or 5xx. One while the snapshot is made comes after status 200, and breaks
// the stream.
//
// # Security
//
// A stream holds the whole database. Set [Handler.Authorize], and use TLS
// wherever others may listen. The name in a request is looked up by the host's
// function and is never taken as a path. The client checks all that the server
// sends before it hands it on; what the follower does with it is verified
// there, frame by frame.
package streamhttp
